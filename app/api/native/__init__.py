"""SGLang's native API: the request and the answer of `/generate`.

The ingress imports it. The facts are SGLang's (`GenerateReqInput`, `SamplingParams`); what we don't serve is
refused by name. A server that is a client of another one reads the shapes in `answer`.
"""
