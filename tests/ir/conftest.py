import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent.parent))  # `from strategies import ...`

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the cores are shared
settings.register_profile("long", settings.get_profile("house"), max_examples=3000)
settings.load_profile("house")
