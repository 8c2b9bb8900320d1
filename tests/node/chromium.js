// Debian's Chromium, for whom all hosts of a gateway on this port of loopback are there.
'use strict'

const { chromium } = require('playwright-core')

exports.launch = port => chromium.launch({
  executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
  args: [
    '--no-sandbox',
    '--disable-dev-shm-usage',
    '--disable-quic',
    `--host-resolver-rules=MAP *.gw.test 127.0.0.1:${port}, MAP gw.test 127.0.0.1:${port}`,
  ],
})
