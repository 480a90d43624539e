"""What the API's tests share."""
