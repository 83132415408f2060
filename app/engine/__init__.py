"""The torch engine of one rank: token ids in, token ids out. Imports no Ray, ZMQ or HTTP."""
