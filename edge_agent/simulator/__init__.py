"""Made-up agents on made-up machines, to look at a fleet before there is one and to load a broker."""
