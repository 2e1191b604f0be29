"""Pictures: sheets of images, plots of measurements, maps of embeddings."""
