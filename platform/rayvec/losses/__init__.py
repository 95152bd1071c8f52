"""Losses: masked next token, InfoNCE, and the gather that keeps gradients. A new loss is one file here."""
