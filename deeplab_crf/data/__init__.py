"""Reading and writing what people keep on disk: images, label images, score arrays. No torch."""
