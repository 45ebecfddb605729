"""Kernel-library profiles, one YAML file each (see `foretrace.replay.costs.physics.profile`)."""
