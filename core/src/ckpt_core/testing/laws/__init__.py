"""The laws of the conformance kit, by what they hold a format to."""
