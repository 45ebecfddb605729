"""`Physics`: each op priced by the formula of its kernel class, with the constants of a kernel-library profile.

`facts` says what a chip can do, `profile` how a library drives it; one module a kernel class holds its formula.
"""

from .model import Physics as Physics
from .profile import Profile as Profile
from .profile import load_profile as load_profile
from .profile import profile_names as profile_names
