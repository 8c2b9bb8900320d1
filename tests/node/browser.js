// A person with a real browser: logs in once, and visits several previews. Argument:
// {"port": of the gateway, "auth": URL of the login host, "token": …, "first": URL, "socket": URL of a
//  preview with a WebSocket echo at /ws, "events": URL of server-sent events, "stranger": URL of
//  somebody else's preview}. Prints one JSON object.
'use strict'

const { launch } = require('./chromium')

const wanted = JSON.parse(process.argv[2])

const main = async () => {
  const browser = await launch(wanted.port)
  // The authority is the test's own.
  const context = await browser.newContext({ ignoreHTTPSErrors: true })
  const page = await context.newPage()
  page.setDefaultTimeout(8000)
  const asked = async url => {
    await page.goto(url)
    return (await page.locator('input[name=token]').count()) === 1
  }
  const result = {}

  result.asked_first = await asked(wanted.first)
  result.asked_at = page.url()
  await page.fill('input[name=token]', wanted.token)
  await Promise.all([page.waitForURL(wanted.first), page.click('button')])
  result.first = JSON.parse(await page.locator('body').innerText())
  result.readable = await page.evaluate(() => document.cookie)

  // The second one: asked nothing, and its WebSocket has the cookie.
  result.asked_second = await asked(wanted.socket)
  result.socket = await page.evaluate(() => new Promise((resolve, reject) => {
    const socket = new WebSocket(`wss://${location.host}/ws`, 'echo.v1')
    const heard = []
    socket.onopen = () => socket.send('hello')
    socket.onmessage = event => {
      heard.push(event.data)
      if (heard.length === 2) resolve(heard)
    }
    socket.onerror = () => reject(new Error('the WebSocket failed'))
  }))

  await page.goto(wanted.first)
  result.events = await page.evaluate(url => new Promise((resolve, reject) => {
    const events = new EventSource(url)
    events.onmessage = event => { events.close(); resolve(event.data) }
    events.onerror = () => reject(new Error('the events failed'))
  }), wanted.events)

  // Somebody else's page sees nothing of it, and cannot log anybody out.
  await page.goto(wanted.stranger)
  result.stranger = JSON.parse(await page.locator('body').innerText())
  await page.evaluate(async auth => {
    await fetch(`${auth}/logout`, { method: 'POST', mode: 'no-cors', credentials: 'include' }).catch(() => {})
  }, wanted.auth)
  const form = `<form id=f method=post action="${wanted.auth}/logout"></form>`
  await page.evaluate(html => { document.body.innerHTML = html }, form)
  await Promise.all([page.waitForURL(`${wanted.auth}/logout`), page.evaluate(() => document.getElementById('f').submit())])
  result.still = !(await asked(wanted.first))
  result.cookies = await context.cookies()

  await page.goto(`${wanted.auth}/logout`)
  await page.click('button')
  await page.getByText('You are logged out').waitFor()
  result.asked_after_logout = await asked(wanted.first)
  await browser.close()
  process.stdout.write(`${JSON.stringify(result)}\n`)
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
