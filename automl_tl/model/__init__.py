"""Layer groups, transfer plans, and the model that a trial trains: backbone, plan and head put together."""
