"""How many examples a property test tries, and how they are drawn.

``pytest`` alone draws the same examples on every machine, so that a verdict changes with the code alone.
``pytest --hypothesis-profile=search`` draws others every time, ten times as many, and prints what it finds; that
becomes an ``@example`` of the test.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes depends on the machine. A folder shared by the examples of a test is written anew by each.
_CHECKS = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)

settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, print_blob=True, suppress_health_check=_CHECKS
)
settings.register_profile("search", settings.get_profile("fixed"), derandomize=False, max_examples=1000)
settings.load_profile("fixed")


def examples(count: int) -> settings:
    """Try ``count`` examples in the profile "fixed", and as many times more as another profile asks for."""
    return settings(max_examples=max(1, count * settings.default.max_examples // 100))
