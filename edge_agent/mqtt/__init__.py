"""Connections to brokers, and all of paho; what is said over them is in protocol."""
