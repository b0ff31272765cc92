"""Statistics on plain arrays and frames: no files, no figures."""
