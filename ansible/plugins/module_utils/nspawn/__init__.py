"""Local machines on this computer, made of systemd-nspawn: see docs/architecture.md, "Local machines"."""
