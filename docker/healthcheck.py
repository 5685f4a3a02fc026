"""Exit 0 when JupyterLab answers: /api is public, so no token is needed here."""

import http.client
import sys

connection = http.client.HTTPConnection('127.0.0.1', 8888, timeout=4)
connection.request('GET', '/api')
sys.exit(connection.getresponse().status != 200)
