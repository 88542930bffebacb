"""Policies: authorization, backoff, load balancing, retry budgets, limits. Pure: time and randomness are passed in."""
