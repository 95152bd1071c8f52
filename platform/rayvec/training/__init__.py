"""Training: the stages of the recipe, one loop, DeepSpeed and Ray Train around it."""
