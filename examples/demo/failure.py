"""What every part of the demo raises when it cannot go on. Caught by `__main__` alone, which prints it."""


class DemoFailed(Exception):
    """The demo cannot go on; the message is a sentence for the person at the terminal."""
