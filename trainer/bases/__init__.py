"""Base models that ship with the trainer, so that it can be tried and tested with nothing downloaded."""
