"""Between text and token ids: tokenizer, chat template, streams of text, grammars.

The API and the deployments import it. Engines don't: they take and return token ids.
"""
