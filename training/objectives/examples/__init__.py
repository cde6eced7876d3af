"""Each task's training examples, one file a task: what `model.conditioning` does for a request, done for a clip."""
