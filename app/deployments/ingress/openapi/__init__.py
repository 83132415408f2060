"""The OpenAPI document, made of the real routes and the models of their bodies, and a page that shows it."""
