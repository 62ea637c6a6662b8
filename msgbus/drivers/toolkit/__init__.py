"""What drivers share."""
