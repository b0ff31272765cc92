"""Settings that all tests share."""

from hypothesis import settings

# Examples are timed by the wall clock, which says nothing on a busy machine.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
