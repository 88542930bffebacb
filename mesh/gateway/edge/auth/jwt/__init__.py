"""JSON Web Tokens (RFC 7519): tokens that an identity provider has signed.

Owns: nothing here. Leaves to others: the method (method), the form of a token (token), claims (claims), keys (keys),
where keys come from (key_sources, remote_keys). The cryptography is that of PyJWT and cryptography, the extra `auth`.
"""
