"""What tests of a running fleet share."""
