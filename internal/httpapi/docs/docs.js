'use strict';

// Where Swagger UI keeps keys, when it is told to, and where this page keeps that the reader asked for it.
const KEYS = 'authorized';
const KEEP = 'keep-keys';

const keep = localStorage.getItem(KEEP) === 'yes';
if (!keep) {
  localStorage.removeItem(KEYS);
}

const ui = SwaggerUIBundle({
  url: '/openapi.json',
  dom_id: '#swagger-ui',
  deepLinking: true,
  displayRequestDuration: true,
  docExpansion: 'list',
  defaultModelsExpandDepth: 0,
  defaultModelExpandDepth: 2,
  defaultModelRendering: 'example',
  persistAuthorization: keep,
  tryItOutEnabled: false,
  validatorUrl: null,
});

const box = document.getElementById('keep');
box.checked = keep;
box.addEventListener('change', () => {
  if (box.checked) {
    localStorage.setItem(KEEP, 'yes');
    localStorage.setItem(KEYS, JSON.stringify(ui.authSelectors.authorized().toJS()));
  } else {
    localStorage.removeItem(KEEP);
    localStorage.removeItem(KEYS);
  }
  // Swagger UI learns only at its start whether it is to keep them.
  location.reload();
});
