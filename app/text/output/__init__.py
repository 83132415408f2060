"""What a model's output says: text, thoughts, calls of tools. There is a parser for each way to write calls.

The API and the ingress import it.
"""
