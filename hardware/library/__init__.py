"""The accelerators, hosts and networks that ship, one YAML file each."""
