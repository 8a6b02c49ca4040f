"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where (file, key, rank), what was expected and what to do."""
