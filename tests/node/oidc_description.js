// What an OpenID Connect provider says of itself, over TLS on a free port of loopback. Argument:
// {"cert": PATH, "key": PATH, "plain": the field that is to lead to a port without TLS}.
// Prints that of TLS, then a line for each connection to the other.
'use strict'

const fs = require('node:fs')
const https = require('node:https')
const net = require('node:net')

const main = async () => {
  const wanted = JSON.parse(process.argv[2])
  const plain = net.createServer(socket => {
    process.stdout.write('asked in the clear\n')
    socket.destroy()
  })
  await new Promise(resolve => plain.listen(0, '127.0.0.1', resolve))
  const options = { cert: fs.readFileSync(wanted.cert), key: fs.readFileSync(wanted.key) }
  let description
  const server = https.createServer(options, (request, response) => {
    const is_description = request.url === '/.well-known/openid-configuration'
    response.setHeader('content-type', 'application/json')
    response.end(JSON.stringify(is_description ? description : { keys: [] }))
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  const issuer = `https://localhost:${server.address().port}`
  description = {
    issuer,
    authorization_endpoint: `${issuer}/authorize`,
    token_endpoint: `${issuer}/token`,
    userinfo_endpoint: `${issuer}/userinfo`,
    jwks_uri: `${issuer}/keys`,
    response_types_supported: ['code'],
    subject_types_supported: ['public'],
    id_token_signing_alg_values_supported: ['RS256'],
  }
  if (wanted.plain) {
    description[wanted.plain] = `http://localhost:${plain.address().port}/${wanted.plain}`
  }
  process.stdout.write(`${server.address().port}\n`)
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
