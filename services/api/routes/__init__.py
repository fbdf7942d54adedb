"""The table of routes: every path of the gateway, one file per noun."""
