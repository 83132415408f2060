"""Answers made of a rank's tokens: a file for each API's, over how a sample's output is read and sent."""
