"""tlray finds, trains and hands over the best transfer-learned image classifier for a small data set."""

__version__ = "0.1.0"
