"""The listening sockets of a gateway: what they are, opening them, sharing them, and what is spoken before HTTP.

Owns: nothing here. Leaves to others: the list (opening), TLS (tls, reload), ACME (acme), redirects (redirect), the
PROXY protocol (proxy_protocol), which pages are public (admin), answering requests (server), start and drain (app).
"""
