"""Between text and token ids: tokenizer, chat template, text streams, grammars.

The API, the ingress, `app.check` and `app.engine.loading` import it. Engines don't: they take token ids.
"""
