"""What every test shares. Its presence puts this folder on the path, so that tests import `oracle` and `samples`."""

from __future__ import annotations

from hypothesis import settings

# Properties are checked on the same examples every time; a loaded machine is no reason to fail.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("repeatable")
