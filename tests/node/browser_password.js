// A person with a real browser, who gives one name and password wherever one is asked for. Argument:
// {"port": of the gateway, "user": …, "password": …, "steps": what is done one after the other, each either
//  {"open": URL} or {"fetch": URL, "method": …}, which the page that is open does}. Prints a list, for each
//  step {"status": 0 where the browser shows nothing of the answer, "url": …, "text": …}.
'use strict'

const { launch } = require('./chromium')

const wanted = JSON.parse(process.argv[2])

const main = async () => {
  const browser = await launch(wanted.port)
  // The authority is the test's own.
  const context = await browser.newContext({
    ignoreHTTPSErrors: true,
    httpCredentials: { username: wanted.user, password: wanted.password },
  })
  const page = await context.newPage()
  page.setDefaultTimeout(8000)
  const open = async url => {
    const response = await page.goto(url)
    return { status: response.status(), url: page.url(), text: await page.locator('body').innerText() }
  }
  const fetched = (url, method) => page.evaluate(async ([url, method]) => {
    try {
      const response = await fetch(url, { method })
      return { status: response.status, url: response.url, text: await response.text() }
    } catch {
      return { status: 0, url, text: '' }
    }
  }, [url, method])
  const seen = []
  for (const step of wanted.steps) seen.push(step.open ? await open(step.open) : await fetched(step.fetch, step.method))
  await browser.close()
  process.stdout.write(`${JSON.stringify(seen)}\n`)
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
