// An HTTPS server of a set of keys, as identity providers have one. Takes { cert, key, file, hold };
// prints its port, then `request` for each request. Sends what is in `file`; without one it answers
// 500, or with `hold` as soon as there is one.
'use strict'

const fs = require('node:fs')
const https = require('node:https')

const options = JSON.parse(process.argv[2])
const pair = { cert: fs.readFileSync(options.cert), key: fs.readFileSync(options.key) }

const answer = response => {
  let text
  try {
    text = fs.readFileSync(options.file)
  } catch {
    if (options.hold) return setTimeout(answer, 20, response)
    response.writeHead(500)
    return response.end()
  }
  response.writeHead(200, { 'content-type': 'application/jwk-set+json' })
  response.end(text)
}

const server = https.createServer(pair, (request, response) => {
  console.log('request')
  answer(response)
})
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
