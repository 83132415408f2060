"""Where a model comes from, and its layout on disk: folders, GGUF files, the Hugging Face Hub.

Every layer above may import it; it knows nothing of engines, events or HTTP.
"""
