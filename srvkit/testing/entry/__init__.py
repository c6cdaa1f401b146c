"""What pytest loads in every project where srvkit is installed; installed as the package `srvkit_pytest`.

Must not know srvkit before a test asks for it: it stands outside the package, whose import it would be.
PYTEST_DONT_REWRITE: there is nothing to rewrite, and it may be imported before pytest looks.
"""
