"""Reading and writing what people keep on disk: photographs, label images, score arrays. No torch."""
