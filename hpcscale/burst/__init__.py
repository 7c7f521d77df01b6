"""Bursting: policies and plans (pure), and the handover, which alone acts."""
