"""Code that a user hands over: its import by name, its errors, and the protection of all else from it.

The package imports nothing by itself: `errors` and `deadline` serve processes that do without torch.
"""
