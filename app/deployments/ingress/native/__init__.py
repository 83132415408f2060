"""SGLang's native routes behind the HTTP side: `/generate`, `/v1/loads`, `/health_generate`, `/flush_cache`.

The ingress imports it.
"""
