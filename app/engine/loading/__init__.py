"""The only rooms where an engine is put together: model, tokenizer, grammars, threads; a module per backend.

So they are the only ones of `app.engine` that fetch models and know `app.text`. `app.engine.load` picks one;
no other module is imported with it, so a rank pays only for its own engine.
"""
