// An upload over HTTP/2 that goes on while the answer comes. Takes { port, ca, host, path, mb };
// prints one JSON object: the status, the body, and an error if there was one.
'use strict';
const fs = require('node:fs');
const http2 = require('node:http2');

const options = JSON.parse(process.argv[2]);
const session = http2.connect(`https://${options.host}:${options.port}`, {
  lookup: (host, lookupOptions, callback) => (lookupOptions.all
    ? callback(null, [{ address: '127.0.0.1', family: 4 }])
    : callback(null, '127.0.0.1', 4)),
  ca: fs.readFileSync(options.ca),
});
const result = { status: null, body: '', error: null };
session.on('error', (error) => { result.error = error.message; });
const stream = session.request({ ':method': 'POST', ':path': options.path, ':authority': options.host });
stream.on('response', (head) => { result.status = head[':status']; });
stream.on('data', (data) => { result.body += data; });
stream.on('error', (error) => { result.error = error.message; });
const finish = () => { process.stdout.write(JSON.stringify(result) + '\n'); process.exit(0); };
// The answer counts when it is complete, whatever becomes of the rest of the upload.
stream.on('end', finish);
stream.on('close', finish);
const chunk = Buffer.alloc(64 * 1024, 'x');
let left = options.mb * 16;
const send = () => {
  while (left > 0 && !stream.destroyed && stream.writable) {
    left -= 1;
    if (!stream.write(chunk)) { stream.once('drain', send); return; }
  }
  if (!stream.destroyed) stream.end();
};
send();
