"""What others see: the folder of a run, its card, its place on the Hub."""
