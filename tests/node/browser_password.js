// A person with a real browser, who gives a password wherever one is asked for. Argument:
// {"port": of the gateway, "asks": URL of a service below a path that asks for a password, "own": URL of
//  the same on a host of its own, "kept": URL on the base host that asks for one, "others": URLs of services
//  below a path that answer with what they got}. Prints one JSON object.
'use strict'

const { chromium } = require('playwright-core')

const wanted = JSON.parse(process.argv[2])

const main = async () => {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    args: [
      '--no-sandbox',
      '--disable-dev-shm-usage',
      '--disable-quic',
      `--host-resolver-rules=MAP *.gw.test 127.0.0.1:${wanted.port}, MAP gw.test 127.0.0.1:${wanted.port}`,
    ],
  })
  // The authority is the test's own.
  const context = await browser.newContext({
    ignoreHTTPSErrors: true,
    httpCredentials: { username: 'admin', password: 's3cret' },
  })
  const page = await context.newPage()
  page.setDefaultTimeout(8000)
  const status = async url => (await page.goto(url)).status()
  const result = {}
  result.asks = await status(wanted.asks)
  result.own = await status(wanted.own)
  result.kept = await status(wanted.kept)
  result.others = []
  for (const url of wanted.others) {
    await page.goto(url)
    result.others.push(JSON.parse(await page.locator('body').innerText()))
    // Not only what opens in the window.
    result.others.push(await page.evaluate(async url => (await fetch(url)).json(), url))
  }
  result.again = await status(wanted.kept)
  await browser.close()
  process.stdout.write(`${JSON.stringify(result)}\n`)
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
