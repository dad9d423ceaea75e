"""Webhooks on their way: sent, signed and counted. Whom they tell, and of what, the store says (store/webhooks)."""
