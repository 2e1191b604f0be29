"""The choice of an index by measurement: `retr index --backend auto`."""
